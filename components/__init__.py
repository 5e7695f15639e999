"""The pipeline's steps as KFP components: one file per step, each one call of the library.

KFP ships only a function's own source to the pod, so each function imports what it needs, from the image's installed package.
"""

# A placeholder: the pipeline sets the image of each task.
IMAGE = "goemotions-trainer"
