"""The tab *Allocator* in Flower: what the ledger says, live, and operators' actions where Flower knows who acts."""
