"""Tests of vidaccel; the folders mirror the package."""
