"""What PEs multiply with: exact products, gates that may be faulty, tables; and what faults do inside."""
