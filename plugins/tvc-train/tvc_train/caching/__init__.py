"""Features of what is frozen, computed once: where a model is cut, where they are kept, and how a
training gets them.
"""
