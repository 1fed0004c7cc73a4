"""What each member must hold: sessions, replicas, managers."""
