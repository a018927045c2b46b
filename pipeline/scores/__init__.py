"""Scores from elsewhere: tables of them, matched with images, become a cache."""
