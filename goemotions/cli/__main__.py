from goemotions.cli.main import main

main()
