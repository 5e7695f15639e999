"""Model profiles, classifiers, tokenizers and the engines that compute probabilities.

| modules | what they have |
|---|---|
| profiles | what can be trained: encoders and hyperparameters |
| encoder_files, weights_folder | where an encoder's files come from; what is refused before a library reads them |
| architectures, classifier | the networks; one is built, saved and loaded |
| pretrained_tokenizer, tokenizer_file, tokenizer | an encoder's tokenizer; the reader of the file; texts to token ids |
| engine_names, devices, engines | what computes probabilities, and on what |
| export, quantization, onnx_file | the step that writes ONNX; int8; what such a file may refer to |
| records | `training.json` and `export.json` |
"""
