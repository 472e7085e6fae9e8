"""How annotations are checked while the tests run: an int is a float, as type checkers have it."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
