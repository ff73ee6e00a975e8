"""Fine-tune an open-weight chat model on a domain without it forgetting the rest.

The stages in `stages/` import this package; it never imports them. README.md has the map.
"""

__version__ = "0.1.0"
