"""``python -m gfm_jepa.torchgeo fit ...``: torchgeo's own command line, which knows our models.

``torchgeo`` itself imports nothing of ours, and timm has no entry point by which it would find our
names. Importing this package is all that is added.
"""

from torchgeo.main import main

if __name__ == '__main__':
    main()
