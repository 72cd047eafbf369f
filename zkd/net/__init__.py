"""HTTP between nodes and to people. ZooKeeper carries decisions, never bulk: what is large travels here."""
