"""TensorRT with numpy and the standard library alone: the same code on the board (``hqp-engine``) and in the export.

Everything in this folder runs on Python 3.8 (JetPack 5) and imports nothing of the package but ``errors``;
`hqp_lightning.export.board_files` packs it into the one file ``hqp-engine.pyz`` that travels with the model.
"""
