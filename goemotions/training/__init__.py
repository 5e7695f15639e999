"""Training runs: the loop, its losses and optimizers, checkpoints and distillation.

| modules | what they have |
|---|---|
| options, launcher | what a training is given; the steps train and teach, in one process per GPU |
| trainer | one training from the Dataset to the Model folder, or to the scores of a teacher |
| loop, state, checkpoints | steps and epochs; what changes meanwhile; how it is stored and resumed |
| batches, losses, optimizers, dropout | the parts of a step |
| distillation, teachers, trained_teachers, transfer | own teachers; those of other profiles; models of before; texts for them alone |
| distributed, hardware | several processes; the machine |
"""
