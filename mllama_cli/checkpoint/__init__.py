"""Names, places and files of models: find, download, read, write."""
