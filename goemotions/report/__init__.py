"""The performance report: a module per topic, all put together in ``performance``; and the documents that it and others are made of."""
