"""Visual documents in the BEIR layout: the configs ``queries``, ``corpus`` and ``qrels`` of one repository."""

from typing import Any

from datasets import Dataset

from plume.evaluation.parsers.common import Item, Parsed, Picture, join


def parse_pages(queries: Dataset, corpus: Dataset, qrels: Dataset, instruction: str, target: str, name: str) -> Parsed:
    """Queries against all pages; grades are those of the judgements, the highest of repeated ones.

    Args:
        queries: ``query-id``, ``query``.
        corpus: ``corpus-id``, ``image``.
        qrels: ``query-id``, ``corpus-id``, ``score``.
        instruction: In front of the query; may be empty.
        target: Text after every page; may be empty.
        name: The task, for errors.

    Raises:
        ValueError: If a query has no judgement, or one names a page that is not in the corpus.
    """
    grades: dict[Any, dict[str, int]] = {}
    for row in qrels.select_columns(["query-id", "corpus-id", "score"]):
        if row["score"] > 0:
            judged = grades.setdefault(str(row["query-id"]), {})
            page = str(row["corpus-id"])
            judged[page] = max(judged.get(page, 0), int(row["score"]))
    keys = [str(key) for key in corpus["corpus-id"]]
    pages = corpus.select_columns(["image"]).cast_column("image", Picture()).add_column("key", keys)
    parsed = Parsed(pages=pages, page_text=target.strip())
    known = set(keys)
    for row in queries.select_columns(["query-id", "query"]):
        relevant = grades.get(str(row["query-id"]), {})
        if not relevant or not relevant.keys() <= known:
            raise ValueError(
                f"The query {row['query-id']!r} of {name} has no judged page in the corpus, so it cannot be scored. "
                "The configs queries, corpus and qrels do not belong together: load them from one revision."
            )
        parsed.queries.append(Item(join(instruction, row["query"])))
        parsed.relevant.append(relevant)
    return parsed
