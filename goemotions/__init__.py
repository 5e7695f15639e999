"""GoEmotions on Kubeflow: from a multi-label text data set to served, versioned classifiers."""
