import sys

from flash_attention.train import main

sys.exit(main())
