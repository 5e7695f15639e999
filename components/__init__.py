"""The pipeline's steps as KFP components: one file per step, each one call of the library.

KFP sends only the source of the function to the pod, so each function imports what it needs from the package in the image.
"""

import functools

from kfp import dsl

# The image is a placeholder: the pipeline sets that of each task.
component = functools.partial(dsl.component, base_image="goemotions-trainer", packages_to_install=[], install_kfp_package=False)
