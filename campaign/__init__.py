"""The campaign: live streams under every fault that can be made here, held against what each answer has to be."""
