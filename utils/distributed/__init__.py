"""One process or several: the same calls everywhere, which do nothing in a single process.

process_group   what the processes of a run say to each other; the form for a single one
torchrun        the same by torch.distributed, imported only where a launcher started the processes
parallel        how a model is spread over them: DDP or FSDP2
"""
