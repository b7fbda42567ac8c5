"""``python -m plume.evaluation.audit``: the same as ``python -m plume.evaluation audit``."""

from plume.evaluation.audit import main

if __name__ == "__main__":
    print(main())
