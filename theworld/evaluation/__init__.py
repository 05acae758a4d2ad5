"""Arms, benchmarks, scores and the statistics between them.

Evaluation changes batches and asks for answers; it does not know what is inside the model.
"""
