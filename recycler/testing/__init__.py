"""Tests that ship: tiny real pools, and the contract that every engine must pass.

They are part of the package, so that whoever writes an engine can run the same tests on it.
"""

from recycler.testing.engine_contract import Answers as Answers
from recycler.testing.engine_contract import EngineContract as EngineContract
from recycler.testing.engine_contract import ask as ask
from recycler.testing.pico import SPECIAL_TOKENS as SPECIAL_TOKENS
from recycler.testing.pico import make_pico_pool as make_pico_pool
from recycler.testing.pico import pico_tokenizer as pico_tokenizer
