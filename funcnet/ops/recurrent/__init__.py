"""Sequences read step by step, with a state that is handed on: lstm, gru, rnn."""
