"""How annotations are checked while tests run: a whole number will do for a float, as in Python's typing rules."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
