"""Model profiles, classifiers, tokenizers and the engines that compute probabilities."""
