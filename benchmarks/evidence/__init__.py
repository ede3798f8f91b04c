"""The evidence: adapters and full fine-tuning of real pretrained models on real data, few labels.

``make evidence`` runs it, in an environment of its own; ``docs/evidence.md`` shows what was found.
"""
