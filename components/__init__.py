"""The pipeline's steps as KFP components: one file a step, each a call of the library.

KFP ships only a function's own source to the pod, so each function imports what it needs, from the image's installed package.
"""

# Set on each task when the pipeline is built; the name here only has to be one.
IMAGE = "goemotions-trainer"
