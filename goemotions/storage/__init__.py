"""Files and folders in S3 or on disk: copies, locks, and the manifest that shows whether a folder is complete."""
