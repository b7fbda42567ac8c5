"""A saved folder as a repository of the Hub: its model card, and its upload."""

import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi

from plume.hub_files_plume import ST_FILES, WEIGHT_FILES

MODEL_CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, transformers, multimodal-embedding, visual-document-retrieval, video-retrieval,
  latent-reasoning, custom_code]
---
# PLUME

Text, images, videos and page images in one retrieval space. Before it embeds, the model thinks a few latent
steps over its key-value cache (PLUME, arXiv 2604.02073). Replace `org/plume` by this repository's id.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("org/plume", trust_remote_code=True)
queries = model.encode_query(["a red bus at a stop"])
documents = model.encode_document([{"image": "bus.jpg"}, {"video": "bus.mp4"}, "a bus timetable"])
print(model.similarity(queries, documents))
```

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("org/plume", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("org/plume", trust_remote_code=True)
embeddings = model(**processor.process_queries(["a red bus at a stop"])).embeddings
```

The number of latent steps, the token positions, the prompt and the pixel limits are stored with the weights.
State here: training data, scores with their condition, limits, licence and base model.
"""


def write_card(folder: Path) -> None:
    """Write a model card into a saved folder that has none."""
    if not (folder / "README.md").exists():
        (folder / "README.md").write_text(MODEL_CARD, encoding="utf-8")


def push_folder(
    part: Any,
    repo_id: str,
    private: bool | None = None,
    token: Any = None,
    revision: str | None = None,
    **upload: Any,
) -> CommitInfo:
    """Upload what a model or a processor saves; the card and the sentence-transformers files of a repository are kept.

    The repository is created where it does not exist. ``upload`` are options of the Hub's ``upload_folder``.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        for name in (*ST_FILES, "README.md"):
            if api.file_exists(repo_id, name, revision=revision):
                api.hf_hub_download(repo_id, name, revision=revision, local_dir=folder)
        part.save_pretrained(folder)
        has_weights = any(Path(folder).glob("model*.safetensors"))  # a processor has none
        options = {"commit_message": "Upload PLUME", "delete_patterns": WEIGHT_FILES if has_weights else None}
        return api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, **{**options, **upload})
