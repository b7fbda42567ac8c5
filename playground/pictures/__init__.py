"""Real pictures, real words: emoji in the styles of several sets, and their names in CLDR's languages.

``python -m plume.playground.pictures --output DIR`` fetches the packages and builds everything; docs/pictures.md.
"""
