"""Texts to labels with a bundle: one by one, in files, and in folders of Parquet files."""
