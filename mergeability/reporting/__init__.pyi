from .cross_method import CrossMethodSummary as CrossMethodSummary
from .cross_method import cross_method_summary as cross_method_summary
from .report import write_report as write_report
from .result_files import save as save
from .summaries import summary_table as summary_table
