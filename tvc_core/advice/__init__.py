"""What users write that tvc does not take, and what they mean by it: the advice at the end of
errors. Imports no torch.
"""
