"""Sources become a validated Dataset folder.

| modules | what they have |
|---|---|
| dataset | the step ``ingest``, and the reading of what it wrote |
| sources, hub, archives, card | where rows come from: the sample, folders, buckets, the hub; archives; the card of a data set |
| layout, partitions | which files are which split; columns in the names of folders |
| tables, delimited, text_files, columnar, parquet_footer, memory | the formats, and bounds on what a file expands to |
| labels, label_cells, raters, taxonomy | how labels are written; one row per rater; the names of the labels |
| validation, splitting, statistics, text | which rows are kept; splits that are missing; ``dataset.json``; the forms of a text |
| request_log, redaction | the log of the server, and its masks |
| feedback, annotation, ranking | its texts as training data, and for labelling |
"""
