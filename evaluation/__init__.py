"""Evaluation: MMEB-v2 as a table of 78 rows on mteb, one encoder, and score tables that refuse unlike comparisons.

1. **Table** (``table``): one row per task; ``mmeb_v2.json`` is ours, any other file has the same schema.
2. **Tasks** (``tasks``, ``parsers``): a row becomes an mteb ``AbsTaskRetrieval``.
3. **Encoder** (``encoder``, ``embedders``): any checkpoint as an mteb encoder, with progress and resume.
4. **Run** (``runner``): rows x checkpoint -> one result file per task.
5. **Read** (``scores``, ``doctor``, ``plots``): means all or nothing, versions never mixed, results checked.
"""
