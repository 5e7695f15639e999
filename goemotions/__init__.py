"""GoEmotions on Kubeflow: from a multi-label text data set to served, versioned classifiers."""

__version__ = "0.1.0"
