"""Scored splits, and what is derived from them: metrics, thresholds, winners and the promotion gate.

| modules | what they have |
|---|---|
| predictions, evaluate, tables | the scored split; the step that writes it; tables for people |
| tuning | the step that fits thresholds |
| latency, selection, gate | measured in turns; the winner of a variant; whether it may replace the champion |
| traffic, reference, drift | counts over texts and predictions; those of validation; how far traffic is from these |
| slices, counterfactuals, robustness, error_analysis | for the report: kinds of texts, groups of people, perturbations, errors |
| occlusion, words, limitations | explanations; what they say per label; where not to use a model |
"""
