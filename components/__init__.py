"""The pipeline's steps as KFP components: one file per step, each one call of the library.

KFP sends only the source of the function to the pod, so each function imports what it needs from the package in the image.
"""

# A placeholder: the pipeline sets the image of each task.
IMAGE = "goemotions-trainer"
