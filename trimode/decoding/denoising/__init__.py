"""Filling blocks of masks: fixed and rolling blocks, and the rules that decide what is final."""
