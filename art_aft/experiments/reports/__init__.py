"""Reports that open in a browser, one file a kind: the verdict first, in words for everyone."""
