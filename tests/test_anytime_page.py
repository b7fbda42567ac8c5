"""The page on anytime embeddings runs as printed, one block after the other."""

import re

from inputs import ROOT


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/anytime.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 5
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert "[1, 4, 128]" in capsys.readouterr().out
    assert [vectors.shape for vectors in names["queries"]] == [(8, 128)] * 2
    assert [vectors.shape for vectors in names["documents"]] == [(4, 128)] * 2
    assert names["taken"].shape == (3,)
    assert (tmp_path / "my-multi-vector" / "modules.json").exists()
