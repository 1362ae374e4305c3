"""Is a classifier infected, and with which label?"""
