"""``python -m plume.evaluation.efficiency``: the same as ``python -m plume.evaluation efficiency``."""

from plume.evaluation.efficiency import main

if __name__ == "__main__":
    print(main())
