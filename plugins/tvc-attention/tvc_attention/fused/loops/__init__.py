"""Loops over maps on the CPU that numba compiles. Nothing else imports numba, so its modules are
imported in the functions that run them.
"""
