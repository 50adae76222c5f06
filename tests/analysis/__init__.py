"""Tests of funcnet.analysis."""
