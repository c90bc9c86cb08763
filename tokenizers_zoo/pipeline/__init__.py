"""Implementation of the commands: make and derive values, train and evaluate tokenizers, write token stores."""

from __future__ import annotations
