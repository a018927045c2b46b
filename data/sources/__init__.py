"""Where a data set comes from: folders, a table, a data set file, a public data set; listed, not yet read."""
