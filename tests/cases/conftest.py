"""Cases from outside: what users, other tools and unlucky moments do to a hybrid, and what is right
then.
"""

from case_tools import quiet_and_repeatable

__all__ = ["quiet_and_repeatable"]
