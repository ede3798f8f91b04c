"""Five habits of fine-tuning on the tasks of the evidence, and whether ``rank`` foretells it.

``make habits`` runs it, in the environment of the evidence; ``docs/habits.md`` shows the results.
"""
