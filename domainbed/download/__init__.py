"""Getting and verifying the published datasets; light to import: no PyTorch.

`catalogue` says where they come from, `fetch` downloads and unpacks, `layouts` finds the images in
whatever came, `download` puts them into place, and `verify` checks what is there.
"""
